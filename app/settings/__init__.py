"""The configuration: a frozen tree read from defaults, litmus.yaml, the environment and the command line; the later ones win.

Built in a `__main__` and passed down as a value. Only this folder reads the environment. Knows no model and no server.
`tree` puts the groups of the other modules together, `reading` fills it.
"""

from app.settings.default import BUNDLED, smollm2
from app.settings.environment import offline_environment, prepare_environment
from app.settings.group import Group
from app.settings.jobs import JobSettings, is_local
from app.settings.model import AdapterPaths, FurtherSettings, LoadedFields, ModelSettings, SamplingSettings
from app.settings.reading import read
from app.settings.security import SecuritySettings
from app.settings.server import LimitSettings, QueueSettings, RetentionSettings, ServerSettings
from app.settings.tree import Settings
from app.settings.ui import TelegramSettings, UISettings

__all__ = [
    "BUNDLED",
    "AdapterPaths",
    "FurtherSettings",
    "Group",
    "JobSettings",
    "LimitSettings",
    "LoadedFields",
    "ModelSettings",
    "QueueSettings",
    "RetentionSettings",
    "SamplingSettings",
    "SecuritySettings",
    "ServerSettings",
    "Settings",
    "TelegramSettings",
    "UISettings",
    "is_local",
    "offline_environment",
    "prepare_environment",
    "read",
    "smollm2",
]

"""What the fork server imports before it forks the first worker. Only there: importing this module changes the process.

Its objects live as long as the process, so the garbage collector looks at them neither while they are made nor in the workers, which
thereby share their memory. Every process of a service may get SIGTERM, and every one of a terminal SIGHUP: the fork server outlives the
workers, which finish their jobs, and ignore SIGHUP as it does.
"""

import gc
import signal

import transformers.utils

gc.disable()
for stop in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(stop, signal.SIG_IGN)
# transformers has scipy for the losses of models that detect objects: 21 MB of each worker, and a third of a second.
transformers.utils.is_scipy_available = lambda: False

import app.models.loading  # noqa: E402
import serve.workers.loop  # noqa: E402, F401

app.models.proofs.code_digests()  # of the code that was just imported: later workers run it, too, whatever the files are then
gc.freeze()

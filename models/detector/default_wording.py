"""The text of `docs/detector.md` between its tables. It states what the tables show: read it again whenever they change."""

OPENING = """# The detector: what it detects, and what it does not
{made} {machine}
"""
SETS = MEANS = TRIMMED = BORDERS = OTHERS = COMBINED = TRIED = PRECISIONS = PAIR = ""

"""How much memory a model takes, before any of its weights is read: `python -m app.estimate`, and the answer of /admin/estimate."""

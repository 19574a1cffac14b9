"""Files, batches and the tasks that they are divided into, as tables in SQLite or PostgreSQL, and the folder that holds the files.

Shared by the server, which adds, and the workers, which take. Knows neither HTTP nor Celery.
"""

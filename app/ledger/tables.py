"""The tables. Times are Unix times in seconds, by the clock of `Database.now`."""

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

NEVER = 1e12  # when a task that is done is due

metadata = MetaData()

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(80), nullable=False),  # name of the key that uploaded it; empty on a server without keys
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("bytes", BigInteger, nullable=False),
    Column("filename", Text, nullable=False),  # as the client called it; it never becomes a path
    Column("purpose", String(32), nullable=False),
    Column("made_for", String(80), unique=True),  # of an output: `batch_id/output` or `batch_id/error`
    Index("files_by_owner", "owner", "created", "id"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(80), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("input_file", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("ending", String(16)),  # the status that it will have when its files are made, where that is known
    Column("pairs", Text),  # metadata of the client, JSON
    Column("output_s", Integer),  # after which its files expire
    Column("problems", Text),  # of the input file, JSON
    Column("model", Text),
    Column("usage", Text),  # JSON
    Column("total", Integer, nullable=False, default=0),
    Column("completed", Integer, nullable=False, default=0),  # of an ended batch; before, its tasks count
    Column("failed", Integer, nullable=False, default=0),
    Column("output_file", String(64)),
    Column("error_file", String(64)),
    Column("key", String(255)),  # Idempotency-Key
    Column("digest", String(64)),  # of the body that came with it
    *(
        Column(f"{status}_at", Float)
        for status in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    ),
    UniqueConstraint("owner", "key"),
    Index("batches_by_owner", "owner", "created", "id"),
    Index("batches_by_status", "status"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("batch", String(64), primary_key=True),
    Column("kind", String(8), primary_key=True),  # check the input, run lines, finish the files
    Column("n", Integer, primary_key=True),
    Column("rank", Float, nullable=False),  # the smallest is taken first
    Column("due", Float, nullable=False),  # when it may be taken: at once, after a pause, or when the lease of its worker ends
    Column("worker", String(80)),  # who took it last
    Column("fence", Integer, nullable=False, default=0),  # how often it was taken: only the last taker may write
    Column("attempts", Integer, nullable=False, default=0),  # how often it was taken since something was written
    Column("first_line", Integer, nullable=False, default=0),
    Column("lines", Integer, nullable=False, default=0),
    Column("first_byte", BigInteger, nullable=False, default=0),
    Column("bytes", BigInteger, nullable=False, default=0),
    Column("completed", Integer, nullable=False, default=0),
    Column("failed", Integer, nullable=False, default=0),
)
Index("tasks_to_take", tasks.c.rank, sqlite_where=tasks.c.due < NEVER, postgresql_where=tasks.c.due < NEVER)

results = Table(
    "results",
    metadata,
    Column("batch", String(64), primary_key=True),
    Column("n", Integer, primary_key=True),  # number of the line, from 0
    Column("succeeded", Boolean, nullable=False),
    Column("line", Text, nullable=False),  # of the output or error file
)

turns = Table(
    "turns",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(80), nullable=False),
    Column("until", Float, nullable=False),
)

tunings = Table(
    "tunings",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(80), nullable=False),
    Column("created", Float, nullable=False),
    Column("recipe", Text, nullable=False),  # JSON of `Recipe`
    Column("training_file", String(64), nullable=False),
    Column("validation_file", String(64)),
    Column("status", String(16), nullable=False),
    Column("used", Text),  # hyperparameters without auto, JSON; known once the files have been checked
    Column("pairs", Text),  # metadata of the client, JSON
    Column("problem", Text),  # why it has failed, JSON
    Column("results", String(64)),  # the file with the losses
    Column("trained_tokens", BigInteger),
    Column("done_by", Float),  # an estimate, while it runs
    Column("finished", Float),
    Column("removed", Boolean, nullable=False, default=False),  # whether its model was deleted
    Index("tunings_by_owner", "owner", "created", "id"),
    Index("tunings_by_status", "status"),
)

tuning_events = Table(
    "tuning_events",
    metadata,
    Column("id", String(64), primary_key=True),  # they sort as they were told
    Column("tuning", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("level", String(8), nullable=False),
    Column("kind", String(8), nullable=False),  # message or metrics
    Column("message", Text, nullable=False),
    Column("data", Text),  # JSON
    Column("step", Integer),  # of what a run tells again that goes on from an earlier step
    Index("tuning_events_by_tuning", "tuning", "created", "id"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tuning", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("step", Integer, nullable=False),
    Column("name", String(160), nullable=False),
    Column("metrics", Text, nullable=False),  # JSON
    Index("checkpoints_by_tuning", "tuning", "created", "id"),
)

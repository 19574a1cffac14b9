"""Fine-tuning in a process of its own: `python -m app.tuning examine FOLDER`, then `train FOLDER`.

Reads files, learns a LoRA adapter, and tells on standard output how far it is. Knows no table, no HTTP and no server.
"""

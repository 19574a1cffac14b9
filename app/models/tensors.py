"""What is wrong with the tensors of a checkpoint, in words."""


def tensor_problem(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    """Name what is wrong, four tensors of each kind at most; empty if nothing is."""
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    parts = [
        f"{len(names)} tensors are {kind} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" for kind, names in kinds if names
    ]
    return "; ".join(parts)

"""Models that other servers answer for: which of them live, which one gets a request, and how its answer becomes one of ours."""

"""How the workers of a run are spread over programs and processes; no workload, no algorithm."""

"""How the workers of a run are spread over programs and processes. Nothing here knows a workload or an algorithm."""

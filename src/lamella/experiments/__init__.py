"""A method on a stream of tasks: runs, metrics, result files, reports and benchmarks."""

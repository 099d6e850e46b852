"""The command line: options to jobs, results to tables, errors to one line and an exit status."""

"""Messages of ext_proc, rate limit and Kuadrant services, generated from `proto/` by `make proto`."""

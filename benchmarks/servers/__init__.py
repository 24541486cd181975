"""Real servers on 127.0.0.1, and what may come between them and a client: for tests and benchmarks."""

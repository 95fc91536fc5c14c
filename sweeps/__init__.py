"""Hyperparameter sweeps over `genrec`: Ray trains, Optuna searches, the ledger remembers."""

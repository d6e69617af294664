"""Running recipes: one child process a trial, a journal on disk, events for whoever watches."""

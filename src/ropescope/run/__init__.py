"""Long work that survives: processes that share it, batches that fit, and a journal of what is finished."""

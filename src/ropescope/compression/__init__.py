"""Key caches with fewer bytes: what is kept of every key, the cache that keeps it, and what it costs."""

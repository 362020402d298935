"""One result or several, looked at: where bands live, whether they agree, which heads to look at; numbers, then words."""

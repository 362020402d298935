"""One result or several, looked at: where bands live, whether they agree, which heads to see; numbers, then words."""

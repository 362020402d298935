"""Two or more results against each other: do bands and periodic pairs sit in the same places?"""

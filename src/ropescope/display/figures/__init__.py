"""Results, sweeps and comparisons as Matplotlib figures; each is one function on the public style module."""

from ropescope.base.extras import require

require("figures", "drawing figures")

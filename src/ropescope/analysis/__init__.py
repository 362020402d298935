"""One result or several, looked at: where bands live, whether they agree, which heads to see; numbers, then words."""

from ropescope.base.extras import require

require("figures", "comparing results and saying where bands live")

"""The journal has its room in :mod:`ropescope.journal`."""

from ropescope.journal import Journal as Journal
from ropescope.journal import drop_journal as drop_journal
from ropescope.journal import journal_of as journal_of

"""The public names, a line each."""

from .curves import legible as legible
from .curves import save_curves as save_curves
from .curves import save_figure as save_figure
from .page import Block as Block
from .page import Figures as Figures
from .page import Picture as Picture
from .page import Section as Section
from .page import Table as Table
from .page import Text as Text
from .page import write_report as write_report
from .plain import of_run as of_run
from .provenance import Provenance as Provenance
from .provenance import settings_table as settings_table
from .provenance import values_table as values_table
from .standing import Standing as Standing
from .standing import runs_below as runs_below

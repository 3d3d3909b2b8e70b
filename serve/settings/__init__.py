"""Settings of the server: their table, and where their values come from. Knows nothing of what uses them."""

from .flags import add_flags, add_setting_flags, given_flags
from .kinds import DatabaseUrl
from .sources import Resolved, resolve
from .table import SETTINGS, Setting, Settings, default_text, flag_of, settings_table, shown_value, variable_of

__all__ = [
    "SETTINGS",
    "DatabaseUrl",
    "Resolved",
    "Setting",
    "Settings",
    "add_flags",
    "add_setting_flags",
    "default_text",
    "flag_of",
    "given_flags",
    "resolve",
    "settings_table",
    "shown_value",
    "variable_of",
]

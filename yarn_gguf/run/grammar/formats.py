"""Patterns for the formats of strings that a grammar can obey. They may allow fewer texts than the format."""

_DAY = "((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?"
FORMATS = {
    "date": f"^[1-9][0-9]{{3}}-{_DAY}$",
    "time": f"^{_TIME}$",
    "date-time": f"^[1-9][0-9]{{3}}-{_DAY}T{_TIME}$",
    "uuid": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "ipv4": rf"^({_BYTE}\.){{3}}{_BYTE}$",
    "hostname": rf"^{_LABEL}(\.{_LABEL}){{0,4}}$",
    "email": rf"^[A-Za-z0-9_]([A-Za-z0-9_.+-]{{0,30}}[A-Za-z0-9_])?@({_LABEL}\.){{1,3}}[A-Za-z]{{2,6}}$",
}

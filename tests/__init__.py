"""Settings without which the many processes and connections of the tests would start slowly."""

import functools
import os
import ssl
import sys

# The tests start many processes: where none may keep what it compiles, each of them would compile SQLAlchemy anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# PyMySQL reads all of the machine's certificates for each connection, which takes ten times as long as connecting.
ssl.create_default_context = functools.cache(ssl.create_default_context)  # type: ignore[assignment]  # its wrapper takes what can be hashed

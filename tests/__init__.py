import os
import sys

# The tests start many processes: where none may keep what it compiles, each of them would compile SQLAlchemy anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

#!/usr/bin/env python
"""Start `router-r1` with secrets from files, in a container.

OPENAI_API_KEY_FILE=/run/secrets/openai sets OPENAI_API_KEY to what that file holds. So it is for all variables whose
names end in _KEY_FILE, _KEYS_FILE or PASSWORD_FILE.
"""

import os
import sys
from pathlib import Path

for name, value in list(os.environ.items()):
    if name.endswith(("_KEY_FILE", "_KEYS_FILE", "PASSWORD_FILE")):
        try:
            os.environ[name.removesuffix("_FILE")] = Path(value).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            sys.exit(f"{name} is {value!r}, which can't be read: {error.strerror}")
# In the place of this process: signals reach the server. The name is looked up in the image's PATH, without a shell.
os.execvp("router-r1", ["router-r1", *sys.argv[1:]])  # noqa: S606, S607

"""What an import brings with it."""

import subprocess
import sys


def loaded_after(code: str, unwanted: str) -> list[str]:
    script = f"{code}\nimport sys\nprint(*[m for m in {unwanted.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()

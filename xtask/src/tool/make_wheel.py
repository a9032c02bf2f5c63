"""Makes the least that pip takes for a wheel, and prints its SHA-256."""

import hashlib
import sys
import zipfile

FILES = {
    "planted-1.0.data/scripts/planted": "abc",
    "planted-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n",
    "planted-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "planted-1.0.dist-info/RECORD": "",
}

with zipfile.ZipFile(sys.argv[1], "w") as wheel:
    for name, content in FILES.items():
        wheel.writestr(name, content)
with open(sys.argv[1], "rb") as wheel:
    print(hashlib.sha256(wheel.read()).hexdigest())

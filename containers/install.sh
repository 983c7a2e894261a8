#!/bin/sh
# What both recipes do in a bare Debian 12: Python, the packages of requirements.lock with their hashes, the library.
# Called with the folder that holds the project's files; everything goes to /opt/nuclass.
set -eu
project="$1"

apt-get update
apt-get install --yes --no-install-recommends ca-certificates git libexpat1 make python3 python3-venv
rm -rf /var/lib/apt/lists/*

python3 -m venv /opt/nuclass
python3 -m venv /opt/uv
/opt/uv/bin/pip install --no-cache-dir --quiet --disable-pip-version-check uv
/opt/uv/bin/uv pip sync --no-cache --quiet --python /opt/nuclass/bin/python --require-hashes --compile-bytecode "$project/requirements.lock"
/opt/uv/bin/uv pip install --no-cache --quiet --python /opt/nuclass/bin/python --no-deps --compile-bytecode "$project"
rm -rf /opt/uv

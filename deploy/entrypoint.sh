#!/bin/sh
# Runs kudos in a container. The database's password comes from a file and goes to libpq through its own variable, so that
# no URL and no log holds it.
set -eu
if [ -n "${PGPASSWORD_FILE:-}" ]; then
    PGPASSWORD=$(cat "$PGPASSWORD_FILE")
    export PGPASSWORD
fi
exec kudos "$@"

#!/bin/sh
# Installs the public MCP clients that are pinned here and runs them against a
# solekey built from this checkout:
#
#   mcp/testdata/clients/ladder.sh [--quick] [--write]
#
# --quick runs what fits into a commit's check, --write keeps the table in
# docs/CLIENTS.md. Needs Go, npm and a network; the clients bring their own
# Node. Exits 1 when a row fails.
set -eu
cd "$(dirname "$0")"
if ! command -v npm >/dev/null; then
  echo 'skipped: no npm'
  exit 0
fi
if ! cmp -s package-lock.json node_modules/.ladder; then
  limit=$(command -v timeout >/dev/null && echo timeout 300 || true)
  if ! $limit npm ci --no-audit --no-fund --loglevel=error; then
    echo 'skipped: the npm registry does not give the clients'
    exit 0
  fi
  cp package-lock.json node_modules/.ladder
fi
exec node_modules/.bin/node ladder.mjs "$@"

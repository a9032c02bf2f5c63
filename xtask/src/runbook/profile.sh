# What an operator's shell knows where the runbooks are run, and the certificates that it finds in $SECRETS. What differs from
# run to run is given: STATE, PROGRAMS, WORKER, WORKER_2, NATS_PORT, NATS_URLS, POSTGRES_PORT, POSTGRES_USER.
unset BASH_ENV "${!MUSTER_@}" "${!PG@}"
export PATH="$PROGRAMS:$PATH"
export SECRETS="$STATE/secrets"
for client in worker repair streams gateway operator; do
  cp "$STATE/muster-$client.pem" "$SECRETS/$client.pem"
  cp "$STATE/muster-$client.key" "$SECRETS/$client.key"
done
cp "$STATE/ca.pem" "$SECRETS/ca.pem"
export CA="$SECRETS/ca.pem" CA_KEY="$STATE/ca.key"

# The image is of no release: for the commands that do not fetch it.
export IMAGE=registry.example/muster/muster-worker
export DIGEST=sha256:6d75737465722d776f726b65722c206f66206e6f2072656c656173652c206e6f

export POD=worker-0
export NATS="localhost:$NATS_PORT" NATS_NAMES=DNS:localhost,DNS:nats-0.nats.nats.svc NATS_PID="$STATE/nats-0.pid"
export LOGINS_PID="$STATE/logins.pid" ISSUED_NKEY="$STATE/issued-nkey" NEXT_NKEY="$STATE/next-nkey"

export POSTGRES_DATA="$STATE/postgres"
export PGHOST=localhost PGPORT="$POSTGRES_PORT" PGUSER="$POSTGRES_USER" PGDATABASE=postgres
export PGPASSFILE="$STATE/pgpass" PGSSLMODE=verify-full PGSSLROOTCERT="$CA"

export MUSTER__NATS__URLS="$NATS_URLS" MUSTER__NATS__TLS_FIRST=true
export MUSTER__NATS__CA_FILE="$CA"
export MUSTER__NATS__CERTIFICATE_FILE="$SECRETS/worker.pem" MUSTER__NATS__KEY_FILE="$SECRETS/worker.key"
export MUSTER__DATABASE__URL_FILE="$SECRETS/database-url" MUSTER__DATABASE__CA_FILE="$CA"
export MUSTER__HTTP__ADDRESS="${WORKER#http://}"

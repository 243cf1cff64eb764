#!/bin/bash
# Real Swift, Keystone, Glance and Nova from Debian's packages on loopback: as the calling user, in one private directory, without systemd. Idempotent.
#
#   LAB_DIR=/some/dir lab.sh up [swift] [keystone] [glance] [nova]      starts what does not run yet, and waits until it answers; glance and nova need keystone,
#                                                     nova needs glance (cloud.sh has both)
#   LAB_DIR=/some/dir lab.sh down [--wipe]            by recorded pid and kernel start time; --wipe deletes the state
#   LAB_DIR=/some/dir lab.sh start|stop|freeze|thaw PART
#
# Parts: memcached swift-object swift-container swift-account swift-proxy keystone swift-kproxy; swift-object2 and swift-object3 where OBJECT_SERVERS says so:
# devices are theirs in turn.
# Ports come from the environment (PORT_*), see below; so does KEYSTONE_TOKEN_TTL (seconds). test/support/openstack-lab.ts is the usual caller.
set -euo pipefail
: "${LAB_DIR:?where the lab lives}"
: "${PORT_PROXY:=18080}" "${PORT_KPROXY:=18081}" "${PORT_OBJECT:=16200}" "${PORT_CONTAINER:=16201}" "${PORT_ACCOUNT:=16202}" "${PORT_MEMCACHE:=11311}" "${PORT_KEYSTONE:=15000}"
: "${OBJECT_SERVERS:=1}" "${PORT_OBJECT2:=16210}" "${PORT_OBJECT3:=16220}" "${SWIFT_DEVICES:=1}" "${SWIFT_REPLICAS:=1}" "${KEYSTONE_TOKEN_TTL:=3600}" "${TOKEN_CACHE_TIME:=300}"
export PORT_KPROXY PATH="/usr/sbin:/usr/bin:/sbin:/bin" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY 2>/dev/null || true
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
C="$LAB_DIR/swift/etc" D="$LAB_DIR/swift/srv" K="$LAB_DIR/keystone" ME="$(id -un)" GROUP="$(id -gn)" KURL="http://127.0.0.1:$PORT_KEYSTONE"
mkdir -p "$LAB_DIR"/{pid,log} "$C" "$D" "$LAB_DIR/swift/cache"

alive() { # the recorded process still runs and is the very one we started
  local f="$LAB_DIR/pid/$1" pid st; [ -s "$f" ] || return 1
  read -r pid st < "$f"; [ -r "/proc/$pid/stat" ] || return 1
  [ "$(sed 's/.*) //' "/proc/$pid/stat" | awk '{print $20}')" = "$st" ] && [ "$(sed 's/.*) //' "/proc/$pid/stat" | cut -c1)" != Z ]
}
launch() {
  local n="$1"; shift; alive "$n" && return 0
  setsid "$@" </dev/null >>"$LAB_DIR/log/$n.log" 2>&1 &
  local pid=$!; sleep 0.05
  echo "$pid $(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | awk '{print $20}')" > "$LAB_DIR/pid/$n"
}
signal() { local pid st; if alive "$2"; then read -r pid st < "$LAB_DIR/pid/$2"; kill "-$1" -- "-$pid" 2>/dev/null || kill "-$1" "$pid" 2>/dev/null || true; fi; }
stop() {
  local n i
  for n in "$@"; do signal CONT "$n"; signal TERM "$n"; done
  for n in "$@"; do
    for i in $(seq 60); do alive "$n" || break; sleep 0.05; done
    if alive "$n"; then signal KILL "$n"; fi
    rm -f "$LAB_DIR/pid/$n"
  done
}
wait_http() {
  local n="$1" u="$2" c end=$((SECONDS + 120))
  while [ $SECONDS -lt $end ]; do
    c=$(curl -s -o /dev/null -m 3 -w '%{http_code}' "$u" || true)
    [ "$c" != 000 ] && [ "$c" -lt 500 ] && return 0
    alive "$n" || { echo "$n died:" >&2; tail -5 "$LAB_DIR/log/$n.log" >&2; return 1; }
    sleep 0.1
  done; echo "$n: no answer from $u" >&2; return 1
}

swift_program() { launch "$1" /usr/bin/python3 "$HERE/swift-run.py" "$C" "/usr/bin/$2" "$C/$3" -v; wait_http "$1" "http://127.0.0.1:$4/healthcheck"; }
start() {
  case "$1" in
    memcached) launch memcached /usr/bin/memcached -l 127.0.0.1 -p "$PORT_MEMCACHE" -U 0 -m 64 -u "$ME" ;;
    swift-object) swift_program swift-object swift-object-server object-server.conf "$PORT_OBJECT" ;;
    swift-object2) swift_program swift-object2 swift-object-server object-server2.conf "$PORT_OBJECT2" ;;
    swift-object3) swift_program swift-object3 swift-object-server object-server3.conf "$PORT_OBJECT3" ;;
    swift-container) swift_program swift-container swift-container-server container-server.conf "$PORT_CONTAINER" ;;
    swift-account) swift_program swift-account swift-account-server account-server.conf "$PORT_ACCOUNT" ;;
    swift-proxy) swift_program swift-proxy swift-proxy-server proxy-server.conf "$PORT_PROXY" ;;
    swift-kproxy) swift_program swift-kproxy swift-proxy-server kproxy-server.conf "$PORT_KPROXY" ;;
    keystone)
      OS_KEYSTONE_CONFIG_FILES="$K/keystone.conf" launch keystone /usr/bin/uwsgi --plugin python3 --http-socket "127.0.0.1:$PORT_KEYSTONE" \
        --wsgi-file /usr/bin/keystone-wsgi-public --master --processes 1 --threads 1 --lazy-apps --need-app --die-on-term --add-header "Connection: close" \
        --buffer-size 65535 --procname-prefix-spaced keystone
      wait_http keystone "$KURL/v3" ;;
    *) start_cloud "$1" ;;
  esac
}
. "$HERE/cloud.sh"

port_of() { case "$1" in 1) echo "$PORT_OBJECT" ;; 2) echo "$PORT_OBJECT2" ;; *) echo "$PORT_OBJECT3" ;; esac; }
configure_swift() {
  for i in $(seq "$SWIFT_DEVICES"); do mkdir -p "$D/d$i"; done
  cat > "$C/swift.conf" <<X
[swift-hash]
swift_hash_path_prefix = testprefix
swift_hash_path_suffix = testsuffix
[storage-policy:0]
name = Policy-0
default = yes
X
  local r n p t P i
  for r in account:$PORT_ACCOUNT container:$PORT_CONTAINER object:$PORT_OBJECT; do
    n=${r%%:*}; p=${r##*:}
    [ -s "$C/$n.ring.gz" ] && continue # built once: building again would move partitions
    ( cd "$C"; rm -f "$n.builder"
      swift-ring-builder "$n.builder" create 6 "$SWIFT_REPLICAS" 0 >/dev/null
      for i in $(seq "$SWIFT_DEVICES"); do
        P=$p; [ "$n" != object ] || P=$(port_of $(((i - 1) % OBJECT_SERVERS + 1)))
        swift-ring-builder "$n.builder" add "r1z$i-127.0.0.1:$P/d$i" 1 >/dev/null
      done
      swift-ring-builder "$n.builder" rebalance >/dev/null || [ $? -eq 1 ] ) # 1 is a warning
  done
  for t in account container object; do P=PORT_${t^^}; cat > "$C/$t-server.conf" <<X
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = ${!P}
workers = 0
user = $ME
swift_dir = $C
devices = $D
mount_check = false
log_level = INFO
[pipeline:main]
pipeline = healthcheck recon $t-server
[app:$t-server]
use = egg:swift#$t
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:recon]
use = egg:swift#recon
recon_cache_path = $LAB_DIR/swift/cache
X
  done
  for i in 2 3; do sed "s/^bind_port = .*/bind_port = $(port_of $i)/" "$C/object-server.conf" > "$C/object-server$i.conf"; done
  cat > "$C/proxy-server.conf" <<X
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $PORT_PROXY
workers = 0
user = $ME
swift_dir = $C
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging cache listing_formats bulk tempurl ratelimit s3api tempauth copy container-quotas account-quotas slo dlo versioned_writes symlink proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
# after ten errors a proxy leaves an object server alone for so many seconds: 60, where nobody waits for tests
error_suppression_interval = 3
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
user_test_tester3 = testing3
token_life = 86400
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:$PORT_MEMCACHE
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:tempurl]
use = egg:swift#tempurl
[filter:ratelimit]
use = egg:swift#ratelimit
[filter:copy]
use = egg:swift#copy
[filter:container-quotas]
use = egg:swift#container_quotas
[filter:account-quotas]
use = egg:swift#account_quotas
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
[filter:symlink]
use = egg:swift#symlink
X
}

configure_keystone() {
  mkdir -p "$K"
  cat > "$K/keystone.conf" <<X
[DEFAULT]
log_file = $LAB_DIR/log/keystone-app.log
[database]
connection = sqlite:///$K/keystone.db
sqlite_synchronous = false
[token]
provider = fernet
expiration = $KEYSTONE_TOKEN_TTL
[fernet_tokens]
key_repository = $K/fernet
[fernet_receipts]
key_repository = $K/fernet
[credential]
key_repository = $K/credential
[identity]
# bcrypt's minimum: a password check costs 1 ms instead of 250
password_hash_rounds = 4
[oslo_policy]
policy_dirs = $K/policy.d
[cache]
# without a cache a request costs 0.3 s of CPU; the plain memory backend breaks EC2 credentials
enabled = true
backend = dogpile.cache.memory_pickle
X
}
configure_kproxy() {
  # the TempAuth proxy's configuration with its auth part replaced; authtoken must come before s3api
  sed -e "s/^bind_port = .*/bind_port = $PORT_KPROXY/" -e 's/ s3api tempauth / authtoken s3api s3token keystoneauth /' "$C/proxy-server.conf" > "$C/kproxy-server.conf"
  local service="auth_url = $KURL/v3
auth_type = password
project_domain_id = default
user_domain_id = default
project_name = service
username = swift
password = servicepw"
  cat >> "$C/kproxy-server.conf" <<X
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = $KURL/v3
$service
delay_auth_decision = True
memcached_servers = 127.0.0.1:$PORT_MEMCACHE
token_cache_time = $TOKEN_CACHE_TIME
include_service_catalog = False
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = admin, member
reseller_admin_role = ResellerAdmin
[filter:s3token]
use = egg:swift#s3token
auth_uri = $KURL/v3
delay_auth_decision = True
$service
secret_cache_duration = 60
X
}
prepare_keystone() {
  [ -e "$K/.done" ] && return 0
  rm -rf "$K/keystone.db" "$K/fernet" "$K/credential"; mkdir -p "$K/fernet" "$K/credential" "$K/policy.d"; chmod 700 "$K/fernet" "$K/credential"
  local m="/usr/bin/keystone-manage --config-file $K/keystone.conf"
  { $m db_sync
    # without WAL a reader makes the next writer fail after 5 s with "database is locked"
    /usr/bin/python3 -c 'import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute("PRAGMA journal_mode=WAL").fetchone())' "$K/keystone.db"
    $m fernet_setup --keystone-user "$ME" --keystone-group "$GROUP"
    $m credential_setup --keystone-user "$ME" --keystone-group "$GROUP"
    $m bootstrap --bootstrap-password adminpw --bootstrap-region-id RegionOne \
      --bootstrap-public-url "$KURL/v3" --bootstrap-internal-url "$KURL/v3" --bootstrap-admin-url "$KURL/v3"
  } >>"$LAB_DIR/log/keystone-setup.log" 2>&1
}

command="$1"; shift
case "$command" in
  up)
    case " $* " in *" nova "*) begin_nova ;; esac
    case " $* " in *" swift "*)
      configure_swift
      for i in $(seq 2 "$OBJECT_SERVERS"); do start "swift-object$i"; done
      for part in memcached swift-object swift-container swift-account swift-proxy; do start "$part"; done ;;
    esac
    case " $* " in *" keystone "*)
      configure_keystone; prepare_keystone; start memcached; start keystone
      if [ ! -e "$K/.done" ]; then /usr/bin/python3 "$HERE/keystone-seed.py" "$KURL" "$K/seed.json"; touch "$K/.done"; fi
      case " $* " in *" swift "*) configure_kproxy; start swift-kproxy ;; esac ;;
    esac
    case " $* " in *" glance "*) configure_glance; start glance ;; esac
    case " $* " in *" nova "*) up_nova ;; esac ;;
  down)
    stop "${CLOUD_PARTS[@]}" swift-kproxy keystone swift-proxy swift-account swift-container swift-object swift-object2 swift-object3 memcached
    [ "${1:-}" != --wipe ] || rm -rf "${LAB_DIR:?}" ;;
  start) start "$1" ;;
  stop) stop "$1" ;;
  freeze) signal STOP "$1" ;;
  thaw) signal CONT "$1" ;;
  *) echo "unknown command: $command" >&2; exit 2 ;;
esac

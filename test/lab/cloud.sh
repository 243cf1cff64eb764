# Sourced by lab.sh: Glance, Placement, RabbitMQ and Nova from Debian's packages, with Keystone, on loopback. Nova has its fake virt driver and no
# networks; neutron-stub.py answers the few questions that it asks a network service all the same.
: "${PORT_GLANCE:=19292}" "${PORT_NOVA:=18774}" "${PORT_PLACEMENT:=18778}" "${PORT_NEUTRON:=19696}" "${PORT_AMQP:=15673}" "${PORT_AMQP_DIST:=25673}" "${PORT_EPMD:=14369}"
export PORT_GLANCE PORT_NOVA PORT_PLACEMENT PORT_NEUTRON
G="$LAB_DIR/glance" N="$LAB_DIR/nova" P="$LAB_DIR/placement" R="$LAB_DIR/rabbit" AMQP="rabbit://guest:guest@127.0.0.1:$PORT_AMQP/"

wal() { /usr/bin/python3 -c 'import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute("PRAGMA journal_mode=WAL")' "$1"; }
service_login() { cat <<X
auth_url = $KURL/v3
auth_type = password
project_domain_id = default
user_domain_id = default
project_name = service
username = $1
password = servicepw
X
}
authtoken() { cat <<X
[keystone_authtoken]
www_authenticate_uri = $KURL/v3
memcached_servers = 127.0.0.1:$PORT_MEMCACHE
$(service_login "$1")
X
}

start_cloud() {
  case "$1" in
    glance) launch glance /usr/bin/python3 /usr/bin/glance-api --config-file "$G/glance-api.conf"; wait_http glance "http://127.0.0.1:$PORT_GLANCE/healthcheck" ;;
    epmd) launch epmd /usr/bin/epmd -address 127.0.0.1 -port "$PORT_EPMD" ;;
    rabbit)
      # RABBITMQ_* in the environment win over /etc/rabbitmq; the wrapper in /usr/sbin would change to another user
      launch rabbit env HOME="$R/home" ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT="$PORT_EPMD" RABBITMQ_NODENAME="os$PORT_AMQP@localhost" RABBITMQ_DIST_PORT="$PORT_AMQP_DIST" \
        RABBITMQ_MNESIA_BASE="$R/mnesia" RABBITMQ_LOG_BASE="$R/log" RABBITMQ_LOGS=- RABBITMQ_PID_FILE="$R/rabbit.pid" RABBITMQ_CONFIG_FILE="$R/rabbitmq.conf" \
        RABBITMQ_ADVANCED_CONFIG_FILE="$R/none" RABBITMQ_ENABLED_PLUGINS_FILE="$R/enabled_plugins" RABBITMQ_CONF_ENV_FILE=/dev/null \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none' /usr/lib/rabbitmq/bin/rabbitmq-server
      for _ in $(seq 300); do (exec 3<>"/dev/tcp/127.0.0.1/$PORT_AMQP") 2>/dev/null && break; alive rabbit || { tail -5 "$LAB_DIR/log/rabbit.log" >&2; exit 1; }; sleep 0.2; done ;;
    placement)
      OS_PLACEMENT_CONFIG_DIR="$P" launch placement /usr/bin/uwsgi --plugin python3 --http-socket "127.0.0.1:$PORT_PLACEMENT" --wsgi-file /usr/bin/placement-api \
        --master --processes 1 --threads 1 --lazy-apps --need-app --die-on-term --add-header "Connection: close" --buffer-size 65535
      wait_http placement "http://127.0.0.1:$PORT_PLACEMENT/" ;;
    neutron-stub) launch neutron-stub /usr/bin/python3 "$HERE/neutron-stub.py" "$PORT_NEUTRON"; wait_http neutron-stub "http://127.0.0.1:$PORT_NEUTRON/" ;;
    nova-conductor | nova-scheduler) launch "$1" /usr/bin/python3 "$HERE/nova-run.py" "/usr/bin/$1" --config-file "$N/nova.conf" ;;
    nova-compute) launch nova-compute /usr/bin/python3 "$HERE/nova-run.py" "$N/nova-compute" --config-file "$N/nova.conf" ;;
    nova-api) launch nova-api /usr/bin/python3 "$HERE/nova-run.py" /usr/bin/nova-api --config-file "$N/nova.conf"; wait_http nova-api "http://127.0.0.1:$PORT_NOVA/" ;;
    *) echo "unknown part: $1" >&2; exit 2 ;;
  esac
}

configure_glance() {
  mkdir -p "$G"/{images,staging,tasks,policy.d}
  cat > "$G/glance-api.conf" <<X
[DEFAULT]
bind_host = 127.0.0.1
bind_port = $PORT_GLANCE
public_endpoint = http://127.0.0.1:$PORT_GLANCE
workers = 0
enabled_backends = file1:file
log_file = $LAB_DIR/log/glance-app.log
# the brackets are needed: without them every image that is made answers 500
enabled_import_methods = [glance-direct]
[database]
connection = sqlite:///$G/glance.db
sqlite_synchronous = false
[glance_store]
default_backend = file1
[file1]
filesystem_store_datadir = $G/images
[os_glance_staging_store]
filesystem_store_datadir = $G/staging
[os_glance_tasks_store]
filesystem_store_datadir = $G/tasks
[paste_deploy]
flavor = keystone
config_file = /etc/glance/glance-api-paste.ini
[oslo_policy]
policy_dirs = $G/policy.d
$(authtoken glance)
X
  [ -e "$G/.done" ] && return 0
  rm -f "$G/glance.db"; /usr/bin/glance-manage --config-file "$G/glance-api.conf" db_sync >>"$LAB_DIR/log/glance-setup.log" 2>&1
  wal "$G/glance.db"; touch "$G/.done"
}

configure_nova() {
  mkdir -p "$N"/{policy.d,instances,tmp} "$P/policy.d" "$R"/{mnesia,log,home}
  cat > "$R/rabbitmq.conf" <<X
listeners.tcp.1 = 127.0.0.1:$PORT_AMQP
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = warning
log.file = false
X
  echo '[].' > "$R/enabled_plugins"
  cat > "$P/placement.conf" <<X
[DEFAULT]
log_file = $LAB_DIR/log/placement-app.log
[api]
auth_strategy = keystone
[placement_database]
connection = sqlite:///$P/placement.db?timeout=60
sqlite_synchronous = false
[oslo_policy]
policy_dirs = $P/policy.d
$(authtoken placement)
X
  cat > "$N/nova.conf" <<X
[DEFAULT]
my_ip = 127.0.0.1
host = fake1
state_path = $N
instances_path = $N/instances
transport_url = $AMQP
compute_driver = fake.FakeDriver
graceful_shutdown_timeout = 2
enabled_apis = osapi_compute
osapi_compute_listen = 127.0.0.1
osapi_compute_listen_port = $PORT_NOVA
osapi_compute_workers = 1
log_dir = $LAB_DIR/log
[wsgi]
api_paste_config = /etc/nova/api-paste.ini
[conductor]
workers = 1
[scheduler]
workers = 1
discover_hosts_in_cells_interval = 2
[database]
connection = sqlite:///$N/nova.db?timeout=60
sqlite_synchronous = false
[api_database]
connection = sqlite:///$N/nova_api.db?timeout=60
sqlite_synchronous = false
[oslo_concurrency]
lock_path = $N/tmp
[oslo_policy]
policy_dirs = $N/policy.d
# what Nova has by itself since 2023: who may read may not lock
enforce_new_defaults = true
enforce_scope = true
[api]
local_metadata_per_cell = false
[placement]
$(service_login nova)
region_name = RegionOne
[glance]
region_name = RegionOne
[service_user]
send_service_user_token = false
[neutron]
endpoint_override = http://127.0.0.1:$PORT_NEUTRON
$(service_login nova)
[vnc]
enabled = false
$(authtoken nova)
X
  # the package nova-compute brings libvirt and qemu; its program is these lines
  printf '%s\n' 'import sys' 'from nova.cmd.compute import main' 'sys.exit(main())' > "$N/nova-compute"
}
prepare_nova() {
  [ -e "$N/.done" ] && return 0
  local m="/usr/bin/nova-manage --config-file $N/nova.conf" d
  rm -f "$N"/*.db* "$P/placement.db"
  /usr/bin/placement-manage --config-dir "$P" db sync >>"$LAB_DIR/log/placement-setup.log" 2>&1 &
  local placement=$!
  { $m api_db sync; $m cell_v2 map_cell0 --database_connection "sqlite:///$N/nova_cell0.db?timeout=60"
    $m db sync
    $m cell_v2 create_cell --name cell1 --transport-url "$AMQP" --database_connection "sqlite:///$N/nova.db?timeout=60"; } >>"$LAB_DIR/log/nova-setup.log" 2>&1
  for d in nova nova_api nova_cell0; do wal "$N/$d.db"; done
  wait "$placement"; wal "$P/placement.db"
}
find_nova_hosts() { # the scheduler maps them into their cell by itself
  [ -e "$N/.done" ] && return 0
  for _ in $(seq 600); do
    /usr/bin/python3 -c 'import sqlite3, sys; sys.exit(sqlite3.connect(sys.argv[1]).execute("SELECT COUNT(*) FROM host_mappings").fetchone()[0] == 0)' "$N/nova_api.db" 2>/dev/null &&
      { touch "$N/.done"; return 0; }
    sleep 0.1
  done
  echo "nova-compute did not register; last lines of its log:" >&2; tail -5 "$LAB_DIR/log/nova-compute.log" >&2; return 1
}
begin_nova() { # what needs no Keystone, beside its start
  configure_nova
  start_cloud epmd; start_cloud rabbit & RABBIT=$!
  prepare_nova & PREPARED=$!
}
up_nova() {
  wait "$RABBIT"; wait "$PREPARED"
  start_cloud placement; start_cloud neutron-stub
  for part in nova-conductor nova-scheduler nova-compute nova-api; do start_cloud "$part"; done
  find_nova_hosts
}
CLOUD_PARTS=(nova-api nova-compute nova-scheduler nova-conductor neutron-stub placement rabbit epmd glance)

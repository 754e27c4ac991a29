#!/bin/bash
# The services the tests run against, for real and on loopback: mosquitto and TimescaleDB (Apache edition). And strace,
# from which the tests tell what a power cut would leave of the gateway's queue, and mbpoll, a Modbus master not ours.
#
#   tools/services.sh         start what is not running; writes .services/environment, which `make test` reads
#   tools/services.sh stop    stop what this script started, by process id
#
# Docker is used where an engine answers. Otherwise, on Debian as root: mosquitto from the distribution, TimescaleDB
# from Debian 13's own packages in a debootstrap folder (one minute, 700 MB). All of it lies in .services/, outside git.
set -euo pipefail
umask 022

project=$(cd "$(dirname "$0")/.." && pwd)
home=$project/.services
system=$home/trixie                 # a Debian 13 of its own
postgres=/usr/lib/postgresql/17/bin # inside it
mqtt_port=18883
database_port=15432
mqtt_users="cloud gw-1 gw-2"
mosquitto_image=eclipse-mosquitto:2.0.22
timescale_image=timescale/timescaledb:2.19.3-pg17-oss
# No fsync: a test may kill the server but never the machine. No telemetry: tests talk to this machine only.
database_settings=(
    -c shared_preload_libraries=timescaledb -c timescaledb.telemetry_level=off -c timezone=UTC -c jit=off
    -c max_connections=100 -c max_worker_processes=32 -c timescaledb.max_background_workers=8
    -c max_locks_per_transaction=256 -c shared_buffers=256MB -c max_wal_size=2GB -c fsync=off
)

say() { printf 'services: %s\n' "$*"; }
fail() { printf 'services: %s\n' "$*" >&2 && exit 1; }
has() { command -v "$1" >/dev/null; }
has_docker() { has docker && timeout 10 docker info >/dev/null 2>&1; }
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

secret() { # made once, kept
    local file=$home/secrets/$1
    [[ -s $file ]] || (umask 077 && od -An -N18 -tx1 /dev/urandom | tr -d ' \n' >"$file")
    cat "$file"
}

# A pid file names our process only as long as that process's command line says so.
running() { # pid file, word
    [[ -s $1 ]] && tr '\0' ' ' <"/proc/$(<"$1")/cmdline" 2>/dev/null | grep -q -- "$2"
}

wait_for() { # what, seconds, command...
    local what=$1 tries=$(($2 * 5))
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((tries-- > 0)) || fail "$what does not answer; its log is in $home"
        sleep 0.2
    done
}

spawn() { # name, command...
    setsid "${@:2}" </dev/null >>"$home/$1.log" 2>&1 9>&- &
    echo $! >"$home/$1.pid"
}

stop_one() { # name, word, signal
    local file=$home/$1.pid
    if running "$file" "$2"; then
        kill "-$3" "$(<"$file")"
        for _ in {1..100}; do
            running "$file" "$2" || break
            sleep 0.1
        done
        say "$1 stopped"
    fi
    rm -f "$file"
}

# ---- mosquitto -------------------------------------------------------------------------------------------------------

# The broker as production runs it (deploy/mosquitto). Tests of brokers start their own, with a fresh memory: a session
# that an interrupted run left behind would take its share of the next run's messages.
mosquitto_users() {
    local user
    for user in $mqtt_users; do printf '%s:%s ' "$user" "$(secret "mqtt-$user")"; done
}

start_mosquitto() {
    running "$home/mosquitto.pid" mosquitto.conf && return
    answers "$mqtt_port" && fail "port $mqtt_port is taken by another program; stop it"
    has mosquitto || { say "installing mosquitto" && apt_install mosquitto; }
    mkdir -p "$home/mosquitto/run" "$home/mosquitto/data"
    (
        MQTT_USERS=$(mosquitto_users)
        export MQTT_USERS MQTT_CONFIG=$project/deploy/mosquitto MQTT_DATA=$home/mosquitto/data MQTT_AS=root
        export MQTT_RUN=$home/mosquitto/run MQTT_CERTS=$home/mosquitto/certs MQTT_PORT=$mqtt_port MQTT_BIND=127.0.0.1
        spawn mosquitto sh "$project/deploy/mosquitto/start.sh"
    )
}

apt_install() {
    # policy-rc.d: the package must not start a broker of its own on the standard port.
    local policy=/usr/sbin/policy-rc.d made=
    [[ -e $policy ]] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && made=1; }
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"; } \
        >>"$home/install.log" 2>&1 || fail "apt-get install $* failed; see $home/install.log"
    [[ -z $made ]] || rm -f $policy
}

# ---- TimescaleDB -----------------------------------------------------------------------------------------------------

# The mirror this machine itself uses: of the sources for its own release, the first with component main.
debian_mirror() {
    local release
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    {
        cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
            sed -nE "s/^deb +(\[[^]]*\] +)?([^ ]+) +$release +(.* )?main( .*)?$/\2/p"
        # deb822: paragraphs of "Field: value"
        cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk -v release="$release" '
            function flush() { if (uri && suites ~ " " release " " && components ~ " main ") print uri; uri = suites = components = "" }
            /^[ \t]*$/ { flush() }
            /^URIs:/ { uri = $2 }
            /^Suites:/ { $1 = ""; suites = $0 " " }
            /^Components:/ { $1 = ""; components = $0 " " }
            END { flush() }'
    } | head -n 1
}

build_system() {
    [[ -e $system/.complete ]] && return
    local mirror
    mirror=$(debian_mirror)
    [[ -n $mirror ]] || fail "no Debian mirror in /etc/apt/sources.list*; add this machine's own, or start Docker"
    has debootstrap || apt_install debootstrap
    say "making a Debian 13 with TimescaleDB in $system; this takes a minute"
    rm -rf --one-file-system "$system"
    debootstrap --variant=minbase trixie "$system" "$mirror" >>"$home/install.log" 2>&1 ||
        fail "debootstrap failed; see $home/install.log"
    printf '#!/bin/sh\nexit 101\n' >"$system/usr/sbin/policy-rc.d"
    chmod 755 "$system/usr/sbin/policy-rc.d"
    mkdir -p "$system/etc/postgresql-common"
    echo "create_main_cluster = false" >"$system/etc/postgresql-common/createcluster.conf"
    chroot "$system" env DEBIAN_FRONTEND=noninteractive sh -c '
        apt-get update -q && apt-get install -q -y --no-install-recommends postgresql-17 postgresql-17-timescaledb &&
        apt-get clean' >>"$home/install.log" 2>&1 || fail "the packages did not install; see $home/install.log"
    touch "$system/.complete"
}

inside() { chroot --userspec=postgres:postgres "$system" "$@"; }

start_timescaledb() {
    running "$home/timescaledb.pid" "port=$database_port" && return
    answers "$database_port" && fail "port $database_port is taken by another program; stop it"
    build_system
    local data=/var/lib/gridloom/data
    if [[ ! -e $system$data/PG_VERSION ]]; then
        rm -rf --one-file-system "${system:?}/var/lib/gridloom"
        chroot "$system" install -d -o postgres -g postgres -m 700 /var/lib/gridloom
        secret database >"$system/var/lib/gridloom/password" # in a folder that is the server's alone
        inside "$postgres/initdb" -D "$data" -U postgres --auth scram-sha-256 --pwfile /var/lib/gridloom/password \
            --encoding utf8 --locale C.UTF-8 >>"$home/install.log" 2>&1 || fail "initdb failed; see $home/install.log"
        rm -f "$system/var/lib/gridloom/password"
    fi
    rm -f "$system$data/postmaster.pid" # of a machine that was stopped under it; ours is not running
    spawn timescaledb chroot --userspec=postgres:postgres "$system" "$postgres/postgres" -D "$data" \
        -c "port=$database_port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= "${database_settings[@]}"
    wait_for TimescaleDB 30 inside "$postgres/pg_isready" -q -h 127.0.0.1 -p "$database_port"
}

# ---- the same with Docker --------------------------------------------------------------------------------------------

start_containers() {
    local running
    running=$(docker ps --format '{{.Names}}')
    if ! grep -qx gridloom-test-mosquitto <<<"$running"; then
        docker rm -f gridloom-test-mosquitto >/dev/null 2>&1 || true
        MQTT_USERS=$(mosquitto_users) docker run -d --name gridloom-test-mosquitto -e MQTT_USERS --user 1883:1883 \
            -p "127.0.0.1:$mqtt_port:1883" -v "$project/deploy/mosquitto:/mosquitto/config:ro" --tmpfs /tmp \
            --tmpfs /run/mosquitto:uid=1883,gid=1883,mode=0700 --entrypoint /bin/sh "$mosquitto_image" \
            /mosquitto/config/start.sh >/dev/null
    fi
    if ! grep -qx gridloom-test-timescaledb <<<"$running"; then
        docker rm -f gridloom-test-timescaledb >/dev/null 2>&1 || true
        POSTGRES_PASSWORD=$(secret database) docker run -d --name gridloom-test-timescaledb -e POSTGRES_PASSWORD \
            -p "127.0.0.1:$database_port:5432" "$timescale_image" postgres "${database_settings[@]}" >/dev/null
    fi
    wait_for TimescaleDB 60 docker exec gridloom-test-timescaledb pg_isready -q -h 127.0.0.1
}

# ---- start and stop --------------------------------------------------------------------------------------------------

write_environment() {
    (
        umask 077
        {
            echo "export GRIDLOOM_TEST_TIMESCALE_DSN=postgresql://postgres:$(secret database)@127.0.0.1:$database_port/postgres"
            echo "export GRIDLOOM_TEST_MQTT_URL=mqtt://127.0.0.1:$mqtt_port"
            for user in $mqtt_users; do
                name=${user^^}
                echo "export GRIDLOOM_TEST_MQTT_PASSWORD_${name//-/_}=$(secret "mqtt-$user")"
            done
        } >"$home/environment.new"
    )
    mv "$home/environment.new" "$home/environment"
}

start() {
    if has_docker; then
        start_containers
    else
        start_mosquitto
        has strace || { say "installing strace" && apt_install strace; }
        has mbpoll || { say "installing mbpoll" && apt_install mbpoll; }
        start_timescaledb
    fi
    wait_for mosquitto 20 answers "$mqtt_port"
    write_environment
    say "mosquitto on 127.0.0.1:$mqtt_port, TimescaleDB on 127.0.0.1:$database_port; . .services/environment"
}

stop() {
    rm -f "$home/environment"
    stop_one mosquitto mosquitto.conf TERM
    stop_one timescaledb "port=$database_port" INT
    ! has_docker || docker rm -f gridloom-test-mosquitto gridloom-test-timescaledb >/dev/null 2>&1 || true
}

if ! has_docker; then
    missing=()
    [[ $(id -u) == 0 ]] || missing+=("root")
    has apt-get || missing+=("Debian's apt-get")
    ((${#missing[@]} == 0)) || fail "missing: $(IFS=, && echo "${missing[*]}"), or else a Docker engine that answers"
fi
mkdir -p "$home/secrets"
chmod 700 "$home/secrets"
exec 9>"$home/lock" && flock 9 # one at a time
case ${1:-start} in
start) start ;;
stop) stop ;;
*) printf 'usage: %s [start|stop]\n' "$0" >&2 && exit 2 ;;
esac

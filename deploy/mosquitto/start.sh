#!/bin/sh
# Start mosquitto with Gridloom's settings.
#
#   MQTT_USERS    "name:password name:password …"; names are "cloud" and the gateways', passwords without space and colon
#   MQTT_CONFIG   folder of mosquitto.conf and acl        (default /mosquitto/config)
#   MQTT_DATA     folder that survives a restart          (default /mosquitto/data)
#   MQTT_RUN      folder for what is made at each start   (default /run/mosquitto)
#   MQTT_CERTS    folder of ca.crt, server.crt, server.key (default /mosquitto/certs); with these the TLS listener opens,
#                 and clients must show a certificate of that CA, whose common name is their user name
#                 (deploy/make-certificates writes all of them)
#   MQTT_PORT, MQTT_BIND          plain listener, for loopback and private networks only (default 1883, all addresses)
#   MQTT_TLS_PORT, MQTT_TLS_BIND  TLS listener                                           (default 8883, all addresses)
#   MQTT_AS       system user to run as when started as root (default mosquitto's own choice)
set -eu
umask 077

config=${MQTT_CONFIG:-/mosquitto/config}
data=${MQTT_DATA:-/mosquitto/data}
run=${MQTT_RUN:-/run/mosquitto}
certs=${MQTT_CERTS:-/mosquitto/certs}
: "${MQTT_USERS:?name:password pairs expected, with spaces between; deploy/make-secrets writes them}"

# Written in clear and hashed in place: on a command line any process could read them.
: >"$run/passwords"
for pair in $MQTT_USERS; do
    case $pair in
        ?*:?*) printf '%s\n' "$pair" >>"$run/passwords" ;;
        *) echo "MQTT_USERS: name:password expected, one pair has no password" >&2; exit 2 ;;
    esac
done
mosquitto_passwd -U "$run/passwords"
# mosquitto would warn of a list others may read, and this copy needs no help from the repository's file modes.
cp "$config/acl" "$run/acl"
chmod 600 "$run/acl" "$run/passwords"

{
    cat "$config/mosquitto.conf"
    echo "persistence_location $data/"
    echo "password_file $run/passwords"
    echo "acl_file $run/acl"
    [ -z "${MQTT_AS:-}" ] || echo "user $MQTT_AS"
    echo "listener ${MQTT_PORT:-1883} ${MQTT_BIND:-0.0.0.0}"
    if [ -f "$certs/server.crt" ]; then
        echo "listener ${MQTT_TLS_PORT:-8883} ${MQTT_TLS_BIND:-0.0.0.0}"
        echo "cafile $certs/ca.crt"
        echo "certfile $certs/server.crt"
        echo "keyfile $certs/server.key"
        echo "require_certificate true"
        # Who signs in is whom the certificate names: a gateway with a certificate needs no password.
        echo "use_identity_as_username true"
        echo "tls_version tlsv1.2"
    fi
} >"$run/mosquitto.conf"
unset MQTT_USERS
exec mosquitto -c "$run/mosquitto.conf"

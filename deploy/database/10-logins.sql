-- Run once, by the image, when the database's volume is new. One login per program, each with one of Gridloom's roles;
-- what a role may do is written in cloud/store/schema. Passwords come from the environment (deploy/make-secrets).
\set ON_ERROR_STOP on
\getenv owner_password GRIDLOOM_DB_OWNER_PASSWORD
\getenv ingest_password GRIDLOOM_DB_INGEST_PASSWORD
\getenv work_password GRIDLOOM_DB_WORK_PASSWORD
\getenv api_password GRIDLOOM_DB_API_PASSWORD
\getenv grafana_password GRIDLOOM_DB_GRAFANA_PASSWORD

-- The roles are made here, so that the schema's owner need not be allowed to make any.
CREATE ROLE gridloom_ingest NOLOGIN;
CREATE ROLE gridloom_work NOLOGIN;
CREATE ROLE gridloom_api NOLOGIN;
CREATE ROLE gridloom_grafana NOLOGIN;

CREATE ROLE owner_login LOGIN PASSWORD :'owner_password';
CREATE ROLE ingest_login LOGIN PASSWORD :'ingest_password' IN ROLE gridloom_ingest;
CREATE ROLE work_login LOGIN PASSWORD :'work_password' IN ROLE gridloom_work;
CREATE ROLE api_login LOGIN PASSWORD :'api_password' IN ROLE gridloom_api;
CREATE ROLE grafana_login LOGIN PASSWORD :'grafana_password' IN ROLE gridloom_grafana;
-- Panels read, and a panel must not hold the database up.
ALTER ROLE grafana_login SET default_transaction_read_only = on;
ALTER ROLE grafana_login SET statement_timeout = '30s';

SELECT current_database() AS database \gset
ALTER DATABASE :"database" OWNER TO owner_login;
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE :"database" TO gridloom_ingest, gridloom_work;
GRANT CONNECT ON DATABASE :"database" TO gridloom_api, gridloom_grafana;
-- Plain PostgreSQL serves as well; the extension needs a superuser only here.
SELECT 'CREATE EXTENSION IF NOT EXISTS timescaledb'
WHERE EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb') \gexec

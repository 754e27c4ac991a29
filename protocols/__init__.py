"""What two programs agree on: codecs, quantities, the MQTT payload. No IO."""

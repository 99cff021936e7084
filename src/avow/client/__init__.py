"""Ordinary MQTT clients for people and scripts, over paho-mqtt."""

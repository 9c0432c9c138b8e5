"""What operators see: logs, metrics, health, the admin API."""

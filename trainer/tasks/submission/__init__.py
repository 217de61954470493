"""`hybrid-infomax check`: what can be known of a job before it queues."""

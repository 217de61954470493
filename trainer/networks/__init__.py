"""Networks: encoders, critics and their layers."""

"""Runs gathered into the papers' tables: python -m trainer.report DIR"""

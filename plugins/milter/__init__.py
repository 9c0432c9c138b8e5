"""Milters: filters that were written for Sendmail and Postfix, behind a socket or in this process.

There is no written standard. Behaviour is libmilter's, and Postfix's where an MTA has to do something.
"""

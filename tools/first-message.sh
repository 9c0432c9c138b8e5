#!/bin/sh
# Printed by `make run` before Gatepost starts: how to send a first message, and how to ask what became of it.
cat <<'TEXT'

Gatepost will listen on 127.0.0.1:2525 (SMTP) and 127.0.0.1:9925 (health, metrics, API), with everything under ./var.
In another terminal, send a first message; the reply ends in its queue id:

  python3 -c 'import smtplib; s = smtplib.SMTP("127.0.0.1", 2525, "localhost"); s.ehlo(); s.mail("you@localhost"); s.rcpt("anna@example.org"); print(s.data("Subject: First light\r\n\r\nHello, Anna.\r\n"))'

It arrives in ./var/mail; why it was taken, and what happened to it since:

  .venv/bin/gatepost explain ID -c gatepost.demo.yaml

TEXT

"""The pipeline as a guest of another MTA, which asks it by Postfix's policy protocol or as a milter."""

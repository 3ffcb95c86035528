"""`make rollout`: three hosts in containers, deploy/ansible over SSH, and checks of what then runs there."""

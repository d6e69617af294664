"""Jobs in processes of their own: started, watched, ended; what becomes of one never harms another.

Knows no job: which function a job means, and what it takes and gives, is said by who asks.
"""

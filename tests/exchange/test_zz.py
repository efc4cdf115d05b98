import ranks, pytest
@pytest.mark.parametrize("kind", ["dpsgd","sgp","overlap"])
@pytest.mark.parametrize("n", [2,3,4])
def test(kind,n):
    print("CPU",kind,n,[round(x,2) for x in ranks.run("zz_cpu.run","exchange_gossip.trajectory",kind,9,num_ranks=n) if x])

# A token for the local chain: 6 decimals, and like USDT its transfer returns nothing.
# Only what a payment needs: no allowances, nobody can mint after the start.
# Compiled into token.py; the command stands there.

event Transfer:
    sender: indexed(address)
    receiver: indexed(address)
    amount: uint256

name: public(constant(String[16])) = "Demo USD"
symbol: public(constant(String[8])) = "dUSDT"
decimals: public(constant(uint8)) = 6
totalSupply: public(uint256)
balanceOf: public(HashMap[address, uint256])


@deploy
def __init__(supply: uint256):
    self.totalSupply = supply
    self.balanceOf[msg.sender] = supply
    log Transfer(sender=empty(address), receiver=msg.sender, amount=supply)


@external
def transfer(receiver: address, amount: uint256):
    self.balanceOf[msg.sender] -= amount
    self.balanceOf[receiver] += amount
    log Transfer(sender=msg.sender, receiver=receiver, amount=amount)
